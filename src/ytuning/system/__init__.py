"""What a machine gives: memory, threads, whole files on disk, and installed packages."""
