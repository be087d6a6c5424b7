"""What leaves: the report, the card, the records behind them."""
