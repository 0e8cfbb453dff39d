"""`ostinato serve`."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Annotated, Literal, cast

import typer

from ostinato.engine.config import DTypeName, EngineConfig
from ostinato.engine.guard import GuardOptions, Reaction
from ostinato.server.cli import guard as cli_guard
from ostinato.server.cli import options as opt
from ostinato.server.cli import security as sec
from ostinato.server.settings import ServerSettings
from ostinato.server.telemetry.log_format import set_up_logging

logger = logging.getLogger(__name__)

LOG_LEVELS = ("critical", "error", "warning", "info", "debug")
LOG_FORMATS = ("text", "json")
DEFAULT_BODY = 8 * 2**20
DEFAULT_STORE = 10 * 2**30
DEFAULT_STATE_CACHE = 2**30
DEFAULT_STATE = 2**30


def named_files(options: list[str]) -> dict[str, str]:
    """`NAME=FILE` by name, and `FILE` alone as the default. Raises BadParameter: a name twice."""
    found: dict[str, str] = {}
    for option in options:
        name, equals, path = option.partition("=")
        name, path = (name, path) if equals and not Path(option).exists() else ("", option)
        if name in found:
            raise typer.BadParameter(f"{f'the name {name!r}' if name else 'a file without a name'} is given twice")
        found[name] = path
    return found


def default_state_folder() -> str:
    """By the XDG base directory specification: `$XDG_STATE_HOME/ostinato/states`."""
    home = os.environ.get("XDG_STATE_HOME", "")
    return str((Path(home) if home else Path.home() / ".local" / "state") / "ostinato" / "states")


def _log_format(value: str) -> str:
    if value not in LOG_FORMATS:
        raise typer.BadParameter(f"must be one of {', '.join(LOG_FORMATS)}")
    return value


def _log_level(value: str) -> str:
    if value not in LOG_LEVELS:
        raise typer.BadParameter(f"must be one of {', '.join(LOG_LEVELS)}")
    return value


StateMemory = Annotated[
    int | None,
    typer.Option(parser=opt.parse_size, metavar="SIZE", help="For all states: 512M, 2G. Default: 1/4 of free memory."),
]
MaxBody = Annotated[
    int | None, typer.Option(parser=opt.parse_size, metavar="SIZE", help="Largest request body. Default: 8MiB.")
]


AttentionWindow = Annotated[
    int | None,
    typer.Option(min=1, help="Tokens that layers of full attention hold, in models that have such. Default: 4096."),
]
InitialStates = Annotated[
    list[str] | None,
    typer.Option(
        "--initial-state",
        metavar="[NAME=]FILE",
        help="A tuned initial state of RWKV (.pth): every text starts from it; with a name, those that ask for it.",
    ),
]
PrefixCache = Annotated[
    int | None,
    typer.Option(
        parser=opt.parse_size, metavar="SIZE", help="Memory for states found by their tokens. Default: 1/8; 0: none."
    ),
]
StateStores = Annotated[
    list[str] | None,
    typer.Option(
        "--state-store",
        metavar="PLACE",
        help="Where states are stored: a folder, redis://, s3://, gs:// or az://; none: nowhere. Several: the ones "
        "before the last are caches. Default: ostinato/states in $XDG_STATE_HOME or ~/.local/state.",
    ),
]
StateStoreSize = Annotated[
    int | None, typer.Option(parser=opt.parse_size, metavar="SIZE", help="Of each place. Default: 10GiB.")
]
StateCache = Annotated[
    int | None,
    typer.Option(parser=opt.parse_size, metavar="SIZE", help="Memory for stored states. Default: 1GiB; 0: none."),
]
MaxState = Annotated[
    int | None, typer.Option(parser=opt.parse_size, metavar="SIZE", help="Largest state to upload. Default: 1GiB.")
]


ParkOnDrain = Annotated[
    bool,
    typer.Option("--park-on-drain", help="Store the states of requests that outlast --drain-seconds, to go on from."),
]
StepTimeout = Annotated[float, typer.Option(min=0.1, help="Seconds after which /ready reports a step as stuck.")]
OtlpEndpoint = Annotated[
    str | None,
    typer.Option(
        envvar="OTEL_EXPORTER_OTLP_ENDPOINT",
        metavar="URL",
        help="Send traces to this collector by OTLP over HTTP. Needs ostinato[otel].",
    ),
]


def serve(
    model: opt.Model = opt.DEMO,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of them.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, envvar="PORT", help="0 takes any free one.")] = 8000,
    device: opt.Device = "cpu",
    dtype: opt.DType = "auto",
    tokenizer: opt.TokenizerPath = None,
    state_memory: StateMemory = None,
    max_batch: Annotated[int | None, typer.Option(min=1, help="Slots: sequences that run at once.")] = None,
    max_step_tokens: Annotated[int, typer.Option(min=2, help="Tokens read in one step.")] = 512,
    max_queue: Annotated[int, typer.Option(min=0, help="Sequences that may wait for a slot.")] = 256,
    threads: opt.Threads = None,
    batch_invariant: opt.BatchInvariant = False,
    cuda_graphs: opt.CUDAGraphs = True,
    served_model_name: Annotated[str | None, typer.Option(help="Name of the model in the API.")] = None,
    attention_window: AttentionWindow = None,
    initial_state: InitialStates = None,
    prefix_cache: PrefixCache = None,
    state_guard: cli_guard.StateGuard = Reaction.REPORT,
    state_norm_limit: cli_guard.NormLimit = None,
    state_mitigation: cli_guard.StateMitigations = None,
    state_window_memory: cli_guard.WindowMemory = False,
    state_store: StateStores = None,
    state_store_size: StateStoreSize = None,
    state_cache: StateCache = None,
    state_compression: Annotated[bool, typer.Option("--state-compression", help="Store states compressed.")] = False,
    max_state: MaxState = None,
    max_body: MaxBody = None,
    max_connections: sec.MaxConnections = 1000,
    api_keys: sec.ApiKeys = None,
    api_key: sec.SingleKey = None,
    open_metrics: sec.OpenMetrics = False,
    cors_origin: sec.CorsOrigins = None,
    drain_seconds: Annotated[float, typer.Option(min=0, help="How long SIGTERM lets running requests go on.")] = 30.0,
    park_on_drain: ParkOnDrain = False,
    step_timeout: StepTimeout = 120.0,
    log_level: Annotated[str, typer.Option(callback=_log_level, help=f"One of {', '.join(LOG_LEVELS)}.")] = "info",
    log_format: Annotated[str, typer.Option(callback=_log_format, help=f"One of {', '.join(LOG_FORMATS)}.")] = "text",
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Let the log show prompts.")] = False,
    otlp_endpoint: OtlpEndpoint = None,
) -> None:
    """Serve MODEL over HTTP with the OpenAI API, until Ctrl-C or SIGTERM; both let running requests finish."""
    engine = EngineConfig(
        opt.model_path(model),
        tokenizer=tokenizer,
        device=device,
        dtype=cast(DTypeName, dtype),  # EngineConfig checks it
        state_memory=state_memory,
        max_batch=max_batch,
        max_step_tokens=max_step_tokens,
        max_queue=max_queue,
        threads=threads,
        attention_window=attention_window,
        initial_states=named_files(initial_state or []),
        prefix_cache=prefix_cache,
        guard=GuardOptions(state_guard, state_norm_limit),
        mitigation=cli_guard.mitigation_options(state_mitigation or []),
        window_memory=state_window_memory,
        batch_invariant=batch_invariant,
        cuda_graphs=cuda_graphs,
    )
    settings = ServerSettings(
        engine=engine,
        host=host,
        port=port,
        max_body_bytes=max_body or DEFAULT_BODY,
        state_store=() if state_store == ["none"] else tuple(state_store or [default_state_folder()]),
        state_store_bytes=DEFAULT_STORE if state_store_size is None else state_store_size,
        state_memory_bytes=DEFAULT_STATE_CACHE if state_cache is None else state_cache,
        state_compression=state_compression,
        max_state_bytes=max_state or DEFAULT_STATE,
        drain_seconds=drain_seconds,
        park_on_drain=park_on_drain,
        step_timeout=step_timeout,
        log_format=cast(Literal["text", "json"], log_format),  # _log_format checks it
        log_prompts=log_prompts,
        otlp_endpoint=otlp_endpoint,
        served_model_name=served_model_name or opt.api_name(model),
        log_level=log_level,
        max_connections=max_connections,
        api_keys=api_keys,
        api_key=api_key,
        open_metrics=open_metrics,
        cors_origins=tuple(cors_origin or ()),
    )
    load_and_run(settings)


def load_and_run(settings: ServerSettings) -> None:
    """The port first, then the model: a port in use should not cost a minute of loading."""
    set_up_logging(settings.log_level, settings.log_format)
    from ostinato.engine.loading import load_service
    from ostinato.server.cli.console import loading_bar, show_capacity, show_ready
    from ostinato.server.security.layers import open_access, warn_if_open
    from ostinato.server.serve import open_socket, run_server, url_of

    open_access(settings)  # a mistake in the keys is to be reported before the model is loaded
    with open_socket(settings.host, settings.port) as listener:
        warn_if_open(listener, settings)
        url = url_of(listener)
        if settings.log_format == "json":  # bars and tables are for people
            service = load_service(settings.engine)
            name = settings.served_model_name or service.model_name
            run_server(service, settings, listener, lambda: logger.info("Ready at %s with %s", url, name))
            return
        with loading_bar() as report:
            service = load_service(settings.engine, progress=report)
        name = settings.served_model_name or service.model_name
        show_capacity(service, name)
        takes_text = service.tokenizer is not None
        run_server(service, settings, listener, lambda: show_ready(url, name, takes_text=takes_text))
