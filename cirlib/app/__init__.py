"""What is built on the study: the search page, the report, the rehearsal, and what a run came from."""
