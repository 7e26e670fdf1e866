"""One file a method; `contract.Method` says what each must do."""
