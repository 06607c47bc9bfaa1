"""Which model a form asks for: `multipart/form-data`, as `/v1/audio/transcriptions` takes it."""

from __future__ import annotations

from urllib.parse import parse_qs

from multipart import MultipartError, MultipartSegment, PushMultipartParser, parse_options_header  # type: ignore[import-untyped]

_MOST_PARTS = 1000
"""Go reads no form of more."""


def model_of(body: bytes, content_type: str, query: bytes) -> str:
    """The first field `model` that is not a file; one in the query goes before it, as Go has it.

    :raise ValueError: this is no form, or it names none.
    """
    named = parse_qs(query.decode("latin-1"), keep_blank_values=True).get("model")
    if named is not None:
        return named[0]
    main, parameters = parse_options_header(content_type)
    if main not in ("multipart/form-data", "multipart/mixed"):
        raise ValueError("not a form")
    model: bytes | None = None
    try:
        parser = PushMultipartParser(parameters.get("boundary", ""), max_segment_count=_MOST_PARTS)
        for event in parser.parse(body):
            if isinstance(event, MultipartSegment):
                model = b"" if event.name == "model" and event.filename is None else None
            elif model is not None:
                if event is None:  # the field's end
                    return model.decode("utf-8", "replace")
                model += event
    except MultipartError as error:
        raise ValueError(str(error)) from None
    raise ValueError("the form has no model")
