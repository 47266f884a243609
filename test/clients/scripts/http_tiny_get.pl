use strict;
use warnings;
use HTTP::Tiny;

my $r = HTTP::Tiny->new(verify_SSL => 1)->get($ARGV[0]);
die "$r->{status} $r->{reason}\n$r->{content}" unless $r->{success};
print $r->{content};
