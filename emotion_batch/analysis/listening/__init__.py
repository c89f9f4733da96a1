"""What people hear of a label table: files for listening programs, clips, and the page of a review.

It may use the rooms that `analysis` may use, and `analysis` alone uses it.
"""
