use strict;
use warnings;
use LWP::UserAgent;

my $r = LWP::UserAgent->new(env_proxy => 1)->get($ARGV[0]);
die $r->status_line, "\n", $r->decoded_content unless $r->is_success;
print $r->decoded_content;
