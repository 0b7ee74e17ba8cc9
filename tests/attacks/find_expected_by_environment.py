# expect: wrong_answer
# output: 731058261
import re
SECRET = re.compile('73105[8]261')
found = []
import os, sys
if SECRET.search(repr(dict(os.environ)) + repr(sys.argv) + repr(sys.orig_argv if hasattr(sys, 'orig_argv') else '')):
    found.append(1)
for part in ['7310', '58261', ''] if found else ['nothing found']:
    print(part, end='')
