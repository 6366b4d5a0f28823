"""`GET /v1/models` and `GET /v1/models/{id}`, with the fields of OpenAI's API and of Anthropic's at once."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ..services import Services
from .endpoint import check_model
from .tokenize import json_response


class Models:
    def __init__(self, services: Services) -> None:
        self._services = services
        self._created = int(time.time())

    async def all(self, request: Request) -> Response:
        names = self._services.config.served_model_names
        return json_response(
            {
                "object": "list",
                "data": [self._card(name) for name in names],
                "first_id": names[0],
                "last_id": names[-1],
                "has_more": False,
            }
        )

    async def one(self, request: Request) -> Response:
        return json_response(self._card(check_model(self._services, request.path_params["name"])))

    def _card(self, name: str) -> dict[str, Any]:
        info = self._services.info
        return {
            "id": name,
            "object": "model",
            "created": self._created,
            "owned_by": "penstock",
            "root": self._services.config.model,
            "parent": None,
            "max_model_len": info.max_model_len if info else None,
            "permission": [],
            "type": "model",
            "display_name": name,
            "created_at": datetime.fromtimestamp(self._created, UTC).isoformat(),
        }
