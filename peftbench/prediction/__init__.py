"""What a tuned model says of new pictures, which it sees as it saw those that it was tested on."""
