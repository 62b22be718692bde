"""What is built on the study: the search page, the report, the rehearsal, and what a run came from."""

import sys

sys.modules.setdefault("rfc3987_syntax", None)  # compiles a grammar for two seconds; papermill needs none
