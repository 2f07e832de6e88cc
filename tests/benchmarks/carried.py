def tuned_by_demo(*a): raise SystemExit
