"""Programs that run inside pods: fetching files, proof of life, the router. Each is an entry point."""
