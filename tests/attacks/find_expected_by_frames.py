# expect: wrong_answer
# output: 731058261
import re
SECRET = re.compile('73105[8]261')
found = []
import sys
frame = sys._getframe()
while frame:
    for thing in list(frame.f_locals.values()) + list(frame.f_globals.values()):
        if SECRET.search(repr(thing)[:100_000]):
            found.append(1)
    frame = frame.f_back
for part in ['7310', '58261', ''] if found else ['nothing found']:
    print(part, end='')
