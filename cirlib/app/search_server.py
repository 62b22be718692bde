"""Serves the search page to any number of visitors, from one model in memory.

``python -m cirlib.app.search_server`` serves it on http://localhost:8866; 06_search serves it from the notebook.
"""

import argparse
import asyncio
import io
from dataclasses import replace
from typing import Any

from PIL import Image, ImageOps
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from cirlib.app.search import MOST_BYTES, Search, SearchError
from cirlib.app.search_page import SearchSite, open_site
from cirlib.models.prepared import open_prepared
from cirlib.study.errors import StageError, StudyError
from cirlib.study.stage import open_stage

SIDE = 336  # pixels of a picture, twice as many as are shown
SETTINGS = {"category": str, "left": str, "right": str, "balance": float, "offer": int}


class _Handler(RequestHandler):
    """An address of the page; an error is one sentence."""

    def initialize(self, site: SearchSite) -> None:
        self.site = site

    def log_exception(self, *error: Any) -> None:
        if not isinstance(error[1], StudyError):
            super().log_exception(*error)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        problem = kwargs.get("exc_info", [None, None])[1]
        known = isinstance(problem, StudyError)
        self.set_status(400 if known else status_code)
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(str(problem) if known else f"This failed ({status_code}); the terminal says why.")

    def write_picture(self, picture: Image.Image) -> None:
        """Answers with a picture, letterboxed to a square."""
        content = io.BytesIO()
        ImageOps.pad(picture, (SIDE, SIDE), color="#F3F3F3").save(content, "JPEG", quality=85)
        self.set_header("Content-Type", "image/jpeg")
        self.finish(content.getvalue())


class _Page(_Handler):
    def get(self) -> None:
        """The view in the address; what that leaves out is as at first."""
        first, ask = self.site.first, self.get_query_arguments
        turns = tuple(zip(ask("reference"), ask("text"), strict=False)) or first.turns
        try:
            given = {name: kind(ask(name)[-1]) for name, kind in SETTINGS.items() if ask(name)}
        except ValueError as error:
            raise SearchError(f"The address is mistyped: {error}.") from None
        self.finish(self.site.page(replace(first, turns=turns, **given)))


class _Picture(_Handler):
    def get(self) -> None:
        self.write_picture(self.site.reference(self.get_query_argument("image")).picture)


class _Attention(_Handler):
    def get(self, which: str) -> None:
        reference, *names = map(self.get_query_argument, ("reference", "text", "method", "found"))
        self.write_picture(self.site.attention(reference, *names)[int(which)])


class _Upload(_Handler):
    def post(self) -> None:
        """Keeps the picture in the body; answers with what it is called."""
        self.finish(self.site.upload(self.request.body, self.get_query_argument("name")))


def serve(site: SearchSite, port: int = 0) -> str:
    """Serves the page from the running event loop, on a free ``port`` where it is 0; the page's address.

    >>> async def begin():
    ...     return serve(site=None)
    >>> asyncio.run(begin()).startswith("http://localhost:")
    True
    """
    handlers = {"/": _Page, "/picture": _Picture, "/attention/([01])": _Attention, "/upload": _Upload}
    application = Application([(path, handler, {"site": site}) for path, handler in handlers.items()])
    try:
        sockets = bind_sockets(port, "localhost")
    except OSError as error:
        raise StageError(f"the page cannot be served on port {port}: {error.strerror}") from None
    HTTPServer(application, max_body_size=MOST_BYTES).add_sockets(sockets)
    return f"http://localhost:{sockets[0].getsockname()[1]}/"


async def _run(port: int) -> None:
    stage = open_stage("search")
    site = open_site(Search(open_prepared(stage)), stage.params.left, stage.params.right)
    print(f"Open  {serve(site, port)}   (Ctrl-C ends it)", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Serves the active study's search page."""
    parser = argparse.ArgumentParser(prog="python -m cirlib.app.search_server", description=main.__doc__)
    parser.add_argument("--port", type=int, default=8866)
    arguments = parser.parse_args()
    try:
        asyncio.run(_run(arguments.port))
    except StudyError as error:
        parser.exit(1, f"{error}\n")
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
