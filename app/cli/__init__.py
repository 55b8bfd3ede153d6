"""The `keepwarm` command: a client of the HTTP API, and the supervisor behind `keepwarm up`."""
