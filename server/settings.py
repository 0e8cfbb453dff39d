"""Settings of one server: what it listens on, what it bounds, and the engine's own settings inside."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ostinato.engine.config import EngineConfig


@dataclass(frozen=True, slots=True)
class ServerSettings:
    """Everything `create_app` and `serve` need besides the loaded service."""

    engine: EngineConfig
    host: str = "127.0.0.1"
    port: int = 8000  # 0: any free one
    max_body_bytes: int = 8 * 2**20
    state_store: tuple[str, ...] = ()  # folders or URLs, caches first; none: no states are kept
    state_store_bytes: int = 10 * 2**30  # of stored content, in each of them
    state_memory_bytes: int = 2**30  # of host memory for stored states that are ready to be loaded
    state_compression: bool = False
    max_state_bytes: int = 2**30  # of an uploaded state
    drain_seconds: float = 30.0  # how long SIGTERM lets running requests go on
    park_on_drain: bool = False  # store the states of requests that outlast it
    step_timeout: float = 120.0  # seconds after which a step counts as stuck
    log_format: Literal["text", "json"] = "text"
    log_prompts: bool = False
    otlp_endpoint: str | None = None  # where traces go
    served_model_name: str | None = None  # None: the name of the loaded model
    completion_max_tokens: int = 16  # of /v1/completions when the request names none, as with OpenAI
    chat_max_tokens: int = 1024  # of /v1/chat/completions when the request names none
    log_level: str = "info"
    api_keys: str | None = None  # the file of API keys; None, and no `api_key`: every request is served
    api_key: str | None = field(default=None, repr=False)  # a single one
    open_metrics: bool = False  # /metrics needs no API key
    cors_origins: tuple[str, ...] = ()  # web pages of these may call the server from browsers
    max_connections: int = 1000
    header_seconds: float = 20.0  # for a request's line and headers to arrive
    body_seconds: float = 60.0  # between two pieces of a body
