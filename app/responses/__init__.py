"""`/v1/responses` behind its routes: conversations, the objects and events of an answer, and how it is streamed."""
