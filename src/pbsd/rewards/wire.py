"""What `pool.py` and `worker.py` say to each other over the worker's standard input and output.

Every message is `HEADER` (the length) and a pickled tuple. Requests: ("load", grader, sys.path, seconds) and
("call", grader, kwargs, seconds). Replies: ("ready", "") or ("failed", why), and ("grade", outcome, score, reason).
"""

import struct

HEADER = struct.Struct(">Q")
