"""What commands share on a screen: output, failures and exit codes, confirmations, progress."""
