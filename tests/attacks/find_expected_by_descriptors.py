# expect: wrong_answer
# output: 731058261
import re
SECRET = re.compile('73105[8]261')
found = []
import os
for fd in (0, 1, 4, 5, 6, 7, 8, 9):
    try:
        os.lseek(fd, 0, 0)
        if SECRET.search(repr(os.read(fd, 10 ** 5))):
            found.append(1)
    except OSError:
        pass
for part in ['7310', '58261', ''] if found else ['nothing found']:
    print(part, end='')
