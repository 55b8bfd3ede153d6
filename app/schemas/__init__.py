"""Bodies of requests and answers: pydantic, at the edge only."""
