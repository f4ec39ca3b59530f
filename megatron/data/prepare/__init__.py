"""From text, records and other trainers' files to corpora: the work behind the tools that prepare data."""
