"""How a run ends, as its exit code; 0 is done. docs/reliability.md says what each leaves behind."""

FAILED = 1  # broke off; what has been written stays
REFUSED = 2  # nothing was begun or changed
NOT_FINITE = 3  # all is done, but for runs that ended early on numbers that are not finite
STOPPED = 75  # by a signal, and saved; it can be gone on with (EX_TEMPFAIL of sysexits.h)
AT_ONCE = 130  # by a second SIGINT, as shells give it
