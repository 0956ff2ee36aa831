"""What `gpureg report` and `gpureg diff` share: options, progress, formats; and the pictures and page of a report."""
