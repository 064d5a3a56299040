"""One job or one library call: predict, run the method, judge the file."""
