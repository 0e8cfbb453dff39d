"""What a deployment on Ray is told: how many replicas, on what, and the server's own settings beside them."""

from __future__ import annotations

from dataclasses import fields
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, model_validator

from ostinato.engine.config import EngineConfig
from ostinato.server.cli.options import DEMO, api_name, model_path
from ostinato.server.settings import ServerSettings

ENGINE = {field.name for field in fields(EngineConfig)}
ELSEWHERE = {"engine", "host", "port"}  # the engine's settings are named by themselves; Ray's proxy listens
SERVER = {field.name for field in fields(ServerSettings)} - ELSEWHERE


def _split(value: object) -> object:
    """`a,b` of a command line, as a list."""
    return [part for part in value.split(",") if part] if isinstance(value, str) else value


class RayOptions(BaseModel):
    """The arguments of the application, from a command line or a file. Every other name is one of a field of
    `EngineConfig` or `ServerSettings`, and means the same; sizes are in bytes.

    state_store: that all replicas share; `none` keeps no states. max_batch: slots of each replica. replicas: how many,
    or with max_replicas how many at least. queue_depth: requests that wait for each replica before there is one more.
    ingresses: processes that read requests and send them to replicas.
    """

    model_config = ConfigDict(extra="allow", frozen=True)

    model: str = DEMO
    device: Literal["cpu", "cuda"] = "cpu"
    state_store: Annotated[tuple[str, ...], BeforeValidator(_split), Field(min_length=1)]
    max_batch: int = Field(32, ge=1)
    replicas: int = Field(1, ge=1)
    max_replicas: int | None = None
    queue_depth: int = Field(4, ge=0)
    ingresses: int = Field(1, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        unknown = sorted((self.model_extra or {}).keys() - ENGINE - SERVER)
        if unknown:
            raise ValueError(f"unknown: {', '.join(unknown)}")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas is below replicas")
        self.settings  # noqa: B018  # is refused here, not in a replica
        return self

    @cached_property
    def settings(self) -> ServerSettings:
        """Those of every replica."""
        given: dict[str, Any] = {**(self.model_extra or {})}  # Any: values of any type, checked below
        engine = {name: given.pop(name) for name in ENGINE & given.keys()}
        engine |= {"model": model_path(self.model), "device": self.device, "max_batch": self.max_batch}
        store = () if self.state_store == ("none",) else self.state_store
        named = {"served_model_name": api_name(self.model), **given, "engine": engine, "state_store": store}
        return TypeAdapter(ServerSettings).validate_python(named)


def parse_devices(devices: str) -> tuple[str, list[str]]:
    """`cuda:0,cuda:1` as their type and the number of each. Raises ValueError: of several types, or one twice."""
    types, indices = zip(*(device.partition(":")[::2] for device in devices.split(",")), strict=True)
    if set(types) not in ({"cpu"}, {"cuda"}) or (types[0] == "cpu" and any(indices)):
        raise ValueError("either cpu,cpu,... or cuda:0,cuda:1,...")
    if types[0] == "cuda" and not (all(map(str.isdigit, indices)) and len(set(indices)) == len(indices)):
        raise ValueError("each GPU once, by its number: cuda:0,cuda:1")
    return types[0], list(indices)
