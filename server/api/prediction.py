"""`prediction`: the text that a client expects as the answer (OpenAI's Predicted Outputs), as tokens to draft from.

It changes how fast an answer comes, never what it says.
"""

from __future__ import annotations

from array import array

from ...scheduler.messages import EngineInfo
from ..services import Services
from .prompt_length import CHARS_PER_TOKEN, MARGIN
from .protocol import ChatRequest
from .text_parts import part_texts


async def read_prediction(services: Services, request: ChatRequest, info: EngineInfo) -> array[int]:
    """Its tokens, none without one; of a text that no answer can be as long as, the beginning.

    Raises a 400 for parts that are no text.
    """
    if request.prediction is None:
        return array("i")
    text = "".join(part_texts(request.prediction.content, "prediction.content"))
    text = text[: CHARS_PER_TOKEN * (info.max_model_len + MARGIN)]
    tokens = await services.tokenizer.encode_async(text, add_special_tokens=False)
    return tokens[: info.max_model_len]
