//! A second's work that shows whether a card computes what it should.
