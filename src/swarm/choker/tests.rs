//! Simulations and rules that hold for every choker.
