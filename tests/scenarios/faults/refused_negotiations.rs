//! Negotiations that were refused: they hold no capacity, and late comers are still answered.
