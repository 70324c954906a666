"""A stand-in for Terraform's AWS provider: Terraform itself checks a configuration against the real provider's schema, and plans it.

Terraform starts it, through the file that ``.ci/terraform`` makes. Where ``TF_STANDIN_ENDPOINT`` names an emulator of AWS, what is
applied is also made there (`aws_calls`); else every computed value is made up. It knows the real provider's arguments, blocks and types, and
none of its own checks of values.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import msgpack
import plugin_pb2 as pb

FOLDER = Path(os.environ.get("TF_STANDIN_SCHEMA", "."))
TYPES = os.environ.get("TF_STANDIN_TYPES", "").split()
"""Those that the configuration uses, as ``resource/aws_lb``: to load all of them takes Terraform half a minute."""
UNKNOWN = msgpack.ExtType(0, b"\x00")
NESTING = {"single": 1, "list": 2, "set": 3, "map": 4}
ACCOUNT, REGION = "123456789012", "eu-west-2"
Block = dict[str, Any]
Value = dict[str, Any]
Make = Callable[[str, Any], Any]


def schema_of(kind: str, name: str) -> Block:
    """One type's block, as `provider_schema` has written it."""
    block: Block = json.loads((FOLDER / kind / f"{name}.json").read_text())
    return block


SCHEMAS = {each: schema_of(*each.split("/")) for each in TYPES}


def as_message(block: Block, *, is_top: bool = True) -> Any:
    """The block as the protocol has it. In a nested block what may be left out is not computed: a set's element must not change."""
    return pb.Schema.Block(
        attributes=[
            pb.Schema.Attribute(
                name=name,
                type=json.dumps(each["type"]).encode(),
                required=each.get("required", False),
                optional=each.get("optional", False),
                computed=is_computed(each, is_top=is_top),
                write_only=each.get("write_only", False),
            )
            for name, each in block["attributes"].items()
        ],
        block_types=[
            pb.Schema.NestedBlock(
                type_name=name,
                nesting=NESTING[each["nesting_mode"]],
                min_items=each.get("min_items", 0),
                max_items=each.get("max_items", 0),
                block=as_message(each["block"], is_top=False),
            )
            for name, each in block["block_types"].items()
        ],
    )


def is_computed(attribute: Value, *, is_top: bool) -> bool:
    """Whether the provider may give it a value."""
    return bool(attribute.get("computed")) and (is_top or not attribute.get("optional"))


def filled(block: Block, value: Any, make: Make, *, is_top: bool = True) -> Any:
    """The value with ``make(name, type)`` for everything computed that is not known yet; write-only arguments are left out."""
    if value is None or isinstance(value, msgpack.ExtType):
        return value
    made = dict(value)
    for name, each in block["attributes"].items():
        is_open = made.get(name) is None and is_computed(each, is_top=is_top)
        if each.get("write_only"):
            made[name] = None
        elif is_open or isinstance(made.get(name), msgpack.ExtType):
            made[name] = make(name, each["type"])
    for name, each in block["block_types"].items():
        inner = made.get(name)
        if isinstance(inner, list):
            made[name] = [filled(each["block"], item, make, is_top=False) for item in inner]
        else:
            made[name] = filled(each["block"], inner, make, is_top=False)
    return made


def unknown(_name: str, _kind: Any) -> Any:
    """Known after apply."""
    return UNKNOWN


def made_up(name: str, kind: Any) -> Any:
    """A value of the type that AWS could have given: one element in a list of objects, for somebody may ask for the first."""
    if isinstance(kind, list):
        if kind[0] in ("list", "set") and isinstance(kind[1], list) and kind[1][0] == "object":
            return [made_up(name, kind[1])]
        if kind[0] == "object":
            return {field: made_up(field, inner) for field, inner in kind[1].items()}
        return {} if kind[0] == "map" else []
    text = (
        f"arn:aws:standin:{REGION}:{ACCOUNT}:{name}" if name.endswith("arn") else f"standin-{name}"
    )
    return {"string": text, "number": 0, "bool": False}.get(kind)


def packed(value: Any) -> Any:
    """For the wire."""
    return pb.DynamicValue(msgpack=msgpack.packb(value))


def unpacked(value: Any) -> Any:
    """From the wire."""
    if value.msgpack:
        return msgpack.unpackb(value.msgpack)
    return json.loads(value.json or b"null")


class Emulated:
    """What an emulator makes and answers, where there is one."""

    def __init__(self, endpoint: str | None) -> None:
        self._calls: Any = None
        if endpoint:
            import aws_calls  # boto3 takes a quarter of a second

            self._calls = aws_calls.Calls(endpoint, REGION)

    def create(self, kind: str, value: Value) -> Value:
        """The computed values of what was made; none for a type that is not made there."""
        return self._calls.create(kind, value) if self._calls else {}


DATA: dict[str, Callable[[Value], Value]] = {
    "aws_caller_identity": lambda _: {"account_id": ACCOUNT},
    "aws_partition": lambda _: {"partition": "aws", "dns_suffix": "amazonaws.com"},
    "aws_region": lambda _: {"region": REGION, "name": REGION},
    "aws_availability_zones": lambda _: {"names": [f"{REGION}{letter}" for letter in "abc"]},
    "aws_subnet": lambda config: {"cidr_block": f"10.7.{len(config['id'])}.0/24"},
}
"""What data sources answer."""


class Provider:
    """The calls of Terraform, by their names in the protocol."""

    def __init__(self) -> None:
        self._emulated = Emulated(os.environ.get("TF_STANDIN_ENDPOINT"))

    def get_provider_schema(self, _request: Any) -> Any:
        """All types of `TYPES`."""

        def of(kind: str) -> dict[str, Any]:
            return {
                each.partition("/")[2]: pb.Schema(block=as_message(block))
                for each, block in SCHEMAS.items()
                if each.startswith(f"{kind}/")
            }

        return pb.GetProviderSchema.Response(
            provider=pb.Schema(block=as_message(schema_of("provider", "aws"))),
            resource_schemas=of("resource"),
            data_source_schemas=of("data"),
            ephemeral_resource_schemas=of("ephemeral"),
        )

    def upgrade_resource_state(self, request: Any) -> Any:
        """As it was stored."""
        return pb.UpgradeResourceState.Response(
            upgraded_state=packed(json.loads(request.raw_state.json))
        )

    def read_resource(self, request: Any) -> Any:
        """As it was applied."""
        return pb.ReadResource.Response(new_state=request.current_state)

    def plan_resource_change(self, request: Any) -> Any:
        """What is new has everything computed unknown; what is changed keeps it."""
        block = SCHEMAS[f"resource/{request.type_name}"]
        is_new = unpacked(request.prior_state) is None
        proposed = unpacked(request.proposed_new_state)
        planned = filled(block, proposed, unknown if is_new else lambda _name, _kind: None)
        return pb.PlanResourceChange.Response(planned_state=packed(planned))

    def apply_resource_change(self, request: Any) -> Any:
        """Makes it; that it is changed or taken away is only noted."""
        kind, planned = request.type_name, unpacked(request.planned_state)
        prior, known = unpacked(request.prior_state), {}
        try:
            if prior is None:
                # The configuration has the write-only arguments too.
                known = self._emulated.create(kind, {**planned, **_written(kind, request.config)})
        except Exception as error:  # the outermost edge: Terraform tells it
            said = pb.Diagnostic(severity=1, summary=f"{kind}: {error}")
            return pb.ApplyResourceChange.Response(
                new_state=request.prior_state, diagnostics=[said]
            )
        block = SCHEMAS[f"resource/{kind}"]
        value = None if planned is None else {**planned, **known}
        return pb.ApplyResourceChange.Response(new_state=packed(filled(block, value, made_up)))

    def read_data_source(self, request: Any) -> Any:
        """See `DATA`."""
        config = unpacked(request.config)
        known = DATA.get(request.type_name, lambda _: {})(config)
        block = SCHEMAS[f"data/{request.type_name}"]
        return pb.ReadDataSource.Response(state=packed(filled(block, {**config, **known}, made_up)))

    def open_ephemeral_resource(self, request: Any) -> Any:
        """Made up, with the words of which a test knows it again."""
        block = SCHEMAS[f"ephemeral/{request.type_name}"]
        value = filled(block, unpacked(request.config), made_up)
        if request.type_name == "aws_secretsmanager_random_password":
            value["random_password"] = "ephemeral-secret-" + "x" * 40
        return pb.OpenEphemeralResource.Response(result=packed(value))


def _written(kind: str, config: Any) -> Value:
    block, value = SCHEMAS[f"resource/{kind}"], unpacked(config)
    names = [name for name, each in block["attributes"].items() if each.get("write_only")]
    return {name: value[name] for name in names}


def shut_down(_request: Any) -> Any:
    """Ends this process once it has answered: Terraform waits for that, or for two seconds."""
    threading.Timer(0.02, os._exit, (0,)).start()
    return pb.Nothing()


def handlers(provider: Provider) -> list[Any]:
    """Of the two gRPC services."""
    answered: dict[str, tuple[Any, Any]] = {
        "GetProviderSchema": (pb.GetProviderSchema.Request, provider.get_provider_schema),
        "UpgradeResourceState": (pb.UpgradeResourceState.Request, provider.upgrade_resource_state),
        "ReadResource": (pb.ReadResource.Request, provider.read_resource),
        "PlanResourceChange": (pb.PlanResourceChange.Request, provider.plan_resource_change),
        "ApplyResourceChange": (pb.ApplyResourceChange.Request, provider.apply_resource_change),
        "ReadDataSource": (pb.ReadDataSource.Request, provider.read_data_source),
        "OpenEphemeralResource": (
            pb.OpenEphemeralResource.Request,
            provider.open_ephemeral_resource,
        ),
    }
    silent = (
        "ValidateProviderConfig", "ValidateResourceConfig", "ValidateDataResourceConfig", "ValidateEphemeralResourceConfig",
        "ConfigureProvider", "StopProvider", "CloseEphemeralResource", "GetFunctions", "GetResourceIdentitySchemas",
    )  # fmt: skip
    answered |= {name: (pb.Nothing, lambda _: pb.Nothing()) for name in silent}

    def made(request: Any, act: Callable[[Any], Any]) -> Any:
        return grpc.unary_unary_rpc_method_handler(
            lambda message, _context: act(message),
            request_deserializer=request.FromString,
            response_serializer=lambda message: message.SerializeToString(),
        )

    services = {
        "tfplugin6.Provider": {name: made(*each) for name, each in answered.items()},
        "plugin.GRPCController": {"Shutdown": made(pb.Nothing, shut_down)},
    }
    return [
        grpc.method_handlers_generic_handler(name, methods) for name, methods in services.items()
    ]


def main() -> None:
    """Serves on a port of its own until Terraform ends it."""
    if "TF_PLUGIN_MAGIC_COOKIE" not in os.environ:
        sys.exit("This is a plugin of Terraform, which starts it.")
    unlimited = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(8), options=unlimited)
    server.add_generic_rpc_handlers(handlers(Provider()))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"1|6|tcp|127.0.0.1:{port}|grpc|", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
