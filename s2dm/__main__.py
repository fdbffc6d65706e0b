"`python -m s2dm`, which is the command `s2dm`."
from s2dm.cli import main

if __name__ == "__main__": raise SystemExit(main())
