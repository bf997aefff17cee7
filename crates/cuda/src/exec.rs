//! The machine that runs a tape on the card.
