"""The contract between the HTTP front (`app`) and the devices (`workers`): jobs, streams, queues, controller.

`app → tasks ← workers`; this package imports neither.
"""
