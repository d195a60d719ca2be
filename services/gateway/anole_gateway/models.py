"""GET /v1/models: the base and its adapters, in OpenAI's shape with vLLM's additions."""

from aiohttp import web

from anole_gateway.middlewares import json_response
from anole_gateway.registry import Model, Registry

_OWNER = "anole"


class Models:
    """What clients may put into `model`."""

    def __init__(self, registry: Registry, *, created_s: int) -> None:
        """created_s: Unix time of the gateway's start; models have no birthday of their own."""
        self._registry = registry
        self._created_s = created_s

    async def list(self, http_request: web.Request) -> web.Response:  # noqa: ARG002
        """GET /v1/models. Adapters that cannot be served are left out."""
        adapters = await self._registry.adapters()
        models = [Model(name=self._registry.base.name, adapter=None)] + [
            Model(name=record.adapter_id, adapter=record)
            for _, record in sorted(adapters.items())
            if record.refused is None
        ]
        return json_response({"object": "list", "data": [self._card(model) for model in models]})

    async def show(self, http_request: web.Request) -> web.Response:
        """GET /v1/models/{model}."""
        model = await self._registry.resolve(http_request.match_info["model"])
        return json_response(self._card(model))

    def _card(self, model: Model) -> dict[str, object]:
        base = self._registry.base
        card: dict[str, object] = {
            "id": model.name,
            "object": "model",
            "created": self._created_s,
            "owned_by": _OWNER,
            "root": model.name,
        }
        if model.adapter is None:
            return card | {"parent": None, "max_model_len": base.context_length}
        return card | {
            "parent": base.name,
            "rank": model.adapter.rank,
            "target_modules": model.adapter.target_modules,
        }
