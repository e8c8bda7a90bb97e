"""Many runs: a study file, the state of its runs, executing what is missing. No figures."""
