//! Charges what is owed.
