"""Bytes on disks, on the Hugging Face Hub and in buckets."""
