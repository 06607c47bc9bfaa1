"""The official `ollama` package, bound to a foreman: existing programs need to change nothing else.

foreman is an Ollama server on the wire, so these clients are Ollama's own, with an address and a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ollama


def ollama_client(base_url: str = "http://127.0.0.1:8080", token: str | None = None, **more: Any) -> ollama.Client:
    """An `ollama.Client` whose server is foreman.

    :param token: its FOREMAN_TOKEN, None if it has none.
    :param more: for `ollama.Client`, and so for `httpx.Client`: `timeout`, …
    :raise ModuleNotFoundError: the package is not installed.
    """
    return _ollama().Client(host=base_url, **_with_token(token, more))  # type: ignore[no-any-return]


def async_ollama_client(
    base_url: str = "http://127.0.0.1:8080", token: str | None = None, **more: Any
) -> ollama.AsyncClient:
    """An `ollama.AsyncClient` whose server is foreman; see `ollama_client`."""
    return _ollama().AsyncClient(host=base_url, **_with_token(token, more))  # type: ignore[no-any-return]


def _with_token(token: str | None, more: dict[str, Any]) -> dict[str, Any]:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return {**more, "headers": {**headers, **(more.get("headers") or {})}}


def _ollama() -> Any:
    try:
        import ollama  # noqa: PLC0415 - whoever does not call this need not have it
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the package `ollama` is not installed; `pip install ollama`", name="ollama"
        ) from error
    return ollama
