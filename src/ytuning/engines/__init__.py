"""Workers that run units of work: processes of this machine or actors of Ray, and who gets which unit."""
