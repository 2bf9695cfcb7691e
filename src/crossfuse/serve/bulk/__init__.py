"""Bulk jobs: every row of a folder or of Parquet files through a bundle, exactly once, however
often the job is killed."""
