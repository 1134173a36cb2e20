"""What tests of several folders share: small models and runs, stand-ins, damaged files."""
