"""Code of serving engines that runs on a CPU as it is installed: their loaders, routing and expert maps."""
