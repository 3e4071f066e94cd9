"""What a run says about itself: records for programs, pictures for people."""
