"""Files and batches behind their routes: content, the process that feeds batches, and what it writes."""
