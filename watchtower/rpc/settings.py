"""What daemons' settings have in common."""

from __future__ import annotations

from pydantic import ValidationError


class ConfigError(Exception):
    """A setting that cannot be; the text is a sentence for the operator."""


def explain(error: ValidationError, program: str) -> str:
    """What is wrong with a program's settings, in a sentence."""
    sentences = []
    for item in error.errors():
        name = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            sentences.append(f"there is no setting {name!r}; see {program} --help")
        else:
            message = item["msg"].removeprefix("Value error, ")
            sentences.append(f"{name} cannot be {item.get('input')!r}: {message[:1].lower()}{message[1:]}")
    return "; ".join(sentences)


def parse_address(text: str, name: str) -> tuple[str, int]:
    """`HOST:PORT`, with [brackets] around an IPv6 address. Raises ConfigError."""
    host, separator, port = text.rpartition(":")
    if not separator or not port.isascii() or not port.isdigit() or int(port) > 65_535 or not host:
        raise ConfigError(f"{name} must be HOST:PORT, such as 127.0.0.1:9735; {text!r} is not")
    return host.removeprefix("[").removesuffix("]"), int(port)
