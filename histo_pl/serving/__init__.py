"""A page and an HTTP API that answer for uploaded tiles, one model and one process. Needs the extra `serve`."""
