"""LangChain's standard tests of chat models and embeddings, over its OpenAI classes, unchanged, pointed at Keepwarm."""

from __future__ import annotations

import os
from typing import Any

from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langchain_tests.integration_tests import ChatModelIntegrationTests, EmbeddingsIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

SERVER = {"base_url": f"{os.environ['SUITE_URL']}/v1", "api_key": "none"}


class ChatProperties:
    """What the demo model and the API can do, as the standard tests ask for it."""

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return ChatOpenAI

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return SERVER | {"model": os.environ["SUITE_CHAT_MODEL"], "stream_usage": True}

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supports_image_inputs(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return True

    @property
    def model_override_value(self) -> str:
        return os.environ["SUITE_SECOND_CHAT_MODEL"]


class TestChatUnit(ChatProperties, ChatModelUnitTests):
    pass


class TestChatIntegration(ChatProperties, ChatModelIntegrationTests):
    @property
    def standard_chat_model_params(self) -> dict[str, Any]:
        return {"temperature": 0, "max_tokens": 2000, "timeout": 60, "max_retries": 0}


class TestEmbeddingsIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self) -> type[Embeddings]:
        return OpenAIEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        # Without the check it sends text; with it, token ids of OpenAI's own vocabulary.
        return SERVER | {"model": os.environ["SUITE_EMBEDDING_MODEL"], "check_embedding_ctx_length": False}
