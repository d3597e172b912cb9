"""A server with the chat page, on a free port, that would wait long for its connections at the end."""

from dialogkit.serving import create_app, run_app
from dialogkit.web import mount_chat
from tests.dialogkit.web.people import WholeBot

if __name__ == "__main__":
    app = create_app({"whole": WholeBot()})
    mount_chat(app)
    run_app(app, port=0, drain_seconds=3600)
