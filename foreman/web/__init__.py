"""The HTTP face: parse, call one operation, render."""
