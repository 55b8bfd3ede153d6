"""Owners of devices: warm pool, ledger, runner processes and the engine. Never imports `app`."""
