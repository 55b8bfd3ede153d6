"""The HTTP front and the command line: validate, admit, enqueue, stream. Never imports `workers`."""
